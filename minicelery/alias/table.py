"""What stands behind each of Celery's paths when minicelery stands in for it.

A row has the modules where the names are found, each followed by its names; ``Theirs=Ours``
where ours is another.  Nothing is imported before a name is asked for.
"""

from __future__ import annotations

SERVED: dict[str, str] = {
    "billiard": """
        multiprocessing: Condition Event JoinableQueue Lock Manager Pipe Pool Process Queue RLock Semaphore
            SimpleQueue active_children cpu_count current_process freeze_support get_context
            get_start_method set_start_method
        minicelery.alias.version: VERSION""",
    "billiard.einfo": "minicelery.alias.processes: ExceptionWithTraceback minicelery.worker.call: ExceptionInfo",
    "billiard.exceptions": """
        minicelery.exceptions: SoftTimeLimitExceeded Terminated TimeLimitExceeded WorkerLostError""",
    "billiard.pool": "minicelery.alias.processes: Worker",
    "billiard.process": "multiprocessing: Process active_children current_process",
    "celery": """
        minicelery: Celery Signature Task bugreport chain chord chunks current_app current_task group
            maybe_signature shared_task signature uuid xmap xstarmap
        minicelery.canvas: subtask=signature
        minicelery.alias.version: SERIES VERSION VERSION_BANNER __version__ version_info
            version_info_t=Version""",
    "celery._state": """
        minicelery._state: current_app current_task get_current_app set_default_app=set_default
        minicelery.alias.surroundings: connect_on_app_finalize get_current_task get_current_worker_task""",
    "celery.app": """
        minicelery: Celery bugreport shared_task
        minicelery.alias.surroundings: app_or_default default_app""",
    "celery.app.base": "minicelery: Celery",
    "celery.app.control": "minicelery.remote: Control Inspect flatten_reply",
    "celery.app.events": "minicelery.events: Events",
    "celery.app.log": "minicelery.alias.logs: TaskFormatter",
    "celery.app.registry": "minicelery.registry: TaskRegistry",
    "celery.app.task": "minicelery.task: Task minicelery.request: Context=Request",
    "celery.app.trace": "minicelery.alias.trace: build_tracer task_has_custom",
    "celery.app.utils": "minicelery: bugreport minicelery.settings: Settings",
    "celery.backends.base": """
        minicelery.alias.backends: Backend BaseBackend BaseDictBackend SyncBackendMixin get_current_task
        minicelery.alias.keyed: BaseKeyValueStoreBackend KeyValueStoreBackend
        minicelery.broker.disabled: DisabledBackend""",
    "celery.beat": """
        minicelery.alias.beat: BeatLazyFunc PersistentScheduler ScheduleEntry Scheduler SchedulingError event_t""",
    "celery.bin.base": "click: CeleryCommand=Command CeleryDaemonCommand=Command CeleryOption=Option",
    "celery.canvas": """
        minicelery.canvas: Signature _chain=chain _chord=chord chain chord chunks group maybe_signature
            signature subtask=signature xmap xstarmap""",
    "celery.contrib.abortable": """
        minicelery.contrib.abortable: ABORTED AbortableAsyncResult AbortableTask""",
    "celery.contrib.django.task": "minicelery.contrib.django.task: DjangoTask",
    "celery.contrib.pytest": """
        minicelery.contrib.pytest: celery_app celery_class_tasks celery_config celery_enable_logging
            celery_includes celery_parameters celery_session_app celery_session_worker celery_worker
            celery_worker_parameters celery_worker_pool depends_on_current_app pytest_configure
            use_celery_app_trap""",
    "celery.contrib.testing.app": "minicelery.contrib.testing.app: TestApp Trap setup_default_app",
    "celery.contrib.testing.tasks": "minicelery.contrib.testing.tasks: ping",
    "celery.contrib.testing.worker": """
        minicelery.contrib.testing.worker: TestWorkController=TestWorker start_worker""",
    "celery.events": """
        minicelery.events: Event EventDispatcher EventReceiver
        minicelery.alias.letters: event_exchange get_exchange group_from""",
    "celery.events.dispatcher": "minicelery.events: EventDispatcher",
    "celery.events.event": """
        minicelery.events: Event minicelery.alias.letters: event_exchange get_exchange group_from""",
    "celery.events.receiver": "minicelery.events: EventReceiver",
    "celery.events.snapshot": "minicelery.alias.snapshots: Polaroid",
    "celery.events.state": "minicelery.events.state: State Task Worker heartbeat_expires",
    "celery.exceptions": """
        minicelery.exceptions: AlreadyRegistered BackendError BackendGetMetaError BackendStoreError
            CeleryError=MiniCeleryError ChordError DuplicateNodenameWarning DuplicateTaskNameWarning
            FixupWarning Ignore ImproperlyConfigured IncompleteStream InvalidTaskError
            MaxRetriesExceededError NotRegistered OperationalError QueueNotFound Reject Retry SecurityError
            SoftTimeLimitExceeded TaskError TaskPredicate TaskRevokedError Terminated TimeLimitExceeded
            TimeoutError WorkerLostError
        minicelery.alias.surroundings: AlwaysEagerIgnored CDeprecationWarning CPendingDeprecationWarning
            CeleryCommandException CeleryWarning NotConfigured SecurityWarning reraise""",
    "celery.local": """
        minicelery._state: PromiseProxy=Proxy Proxy
        minicelery.alias.surroundings: maybe_evaluate try_import""",
    "celery.platforms": """
        minicelery.alias.surroundings: EX_FAILURE EX_OK EX_UNAVAILABLE EX_USAGE IS_WINDOWS
            IS_macOS SYSTEM isatty""",
    "celery.registry": "minicelery.alias.registry: tasks",
    "celery.result": """
        minicelery.result: AsyncResult EagerResult allow_join_result result_from_tuple
        minicelery.groups: GroupResult ResultSet
        minicelery.alias.results: ResultBase""",
    "celery.schedules": """
        minicelery.schedules: BaseSchedule ParseException crontab crontab_parser maybe_schedule schedstate
            schedule solar""",
    "celery.security": "minicelery.security: setup_security",
    "celery.signals": """
        minicelery.signals: after_setup_logger after_setup_task_logger after_task_publish beat_embedded_init
            beat_init before_task_publish celeryd_after_setup celeryd_init eventlet_pool_apply
            eventlet_pool_postshutdown eventlet_pool_preshutdown eventlet_pool_started heartbeat_sent
            import_modules setup_logging task_failure task_internal_error task_postrun task_prerun
            task_received task_rejected task_retry task_revoked task_sent task_success task_unknown
            user_preload_options worker_before_create_process worker_init worker_process_init
            worker_process_shutdown worker_ready worker_shutdown worker_shutting_down""",
    "celery.states": """
        minicelery.states: ALL_STATES EXCEPTION_STATES FAILURE IGNORED PENDING PROPAGATE_STATES READY_STATES
            RECEIVED REJECTED RETRY REVOKED STARTED SUCCESS UNREADY_STATES precedence state""",
    "celery.utils": """
        minicelery.message: gen_unique_id=uuid uuid
        minicelery.alias.functional: cached_property chunks memoize noop
        minicelery.alias.logs: LOG_LEVELS
        minicelery.alias.names: gen_task_name get_cls_by_name=symbol_by_name get_full_cls_name=qualname
            import_from_cwd instantiate nodename nodesplit
        minicelery.routing.queues: worker_direct""",
    "celery.utils.abstract": """
        minicelery.canvas: CallableSignature=Signature minicelery.task: CallableTask=Task""",
    "celery.utils.collections": """
        collections: OrderedDict
        minicelery.alias.objects: AttributeDict AttributeDictMixin ChainMap DictAttribute LimitedSet
            force_mapping lpmerge""",
    "celery.utils.dispatch": "minicelery.signals: Signal",
    "celery.utils.dispatch.signal": "minicelery.signals: Signal",
    "celery.utils.functional": """
        minicelery.alias.functional: LRUCache chunks dictfilter first firstmethod fun_accepts_kwargs is_list
            lazy mattrgetter maybe maybe_evaluate maybe_list memoize mlazy noop padlist regen uniq""",
    "celery.utils.imports": """
        minicelery.alias.names: NotAPackage cwd_in_path find_module gen_task_name import_from_cwd instantiate
            module_file qualname reload_from_cwd symbol_by_name""",
    "celery.utils.iso8601": "minicelery.alias.times: parse_iso8601",
    "celery.utils.log": """
        minicelery.alias.logs: ColorFormatter LOG_LEVELS base_logger get_multiprocessing_logger in_sighandler
            mlevel reset_multiprocessing_logger set_in_sighandler
        minicelery.utils.log: get_logger get_task_logger task_logger""",
    "celery.utils.nodenames": """
        minicelery.alias.names: anon_nodename default_nodename gethostname host_format node_format nodename
            nodesplit
        minicelery.routing.queues: worker_direct""",
    "celery.utils.objects": "minicelery.alias.objects: Bunch getitem_property mro_lookup",
    "celery.utils.saferepr": "minicelery.alias.texts: saferepr",
    "celery.utils.serialization": "minicelery.alias.encoding: b64decode b64encode minicelery.alias.objects: strtobool",
    "celery.utils.sysinfo": "minicelery.alias.surroundings: load_average",
    "celery.utils.term": "minicelery.alias.texts: colored",
    "celery.utils.text": """
        minicelery.alias.texts: abbr abbrtask dedent dedent_initial ensure_newlines ensure_sep
            fill_paragraphs indent join pluralize pretty simple_format str_to_list truncate""",
    "celery.utils.threads": "threading: Local=local get_ident",
    "celery.utils.time": """
        minicelery.alias.times: LocalTimezone add_seconds_to_datetime adjust_timestamp delta_resolution ffwd
            get_exponential_backoff_interval humanize_seconds is_naive localize make_aware maybe_iso8601
            maybe_make_aware maybe_timedelta rate remaining subtract_datetimes timezone to_utc utcoffset
            weekday""",
    "celery.worker.control": "minicelery.remote.registry: Panel control_command inspect_command",
    "celery.worker.request": "minicelery.request: Request",
    "kombu": """
        minicelery: Exchange Queue binding
        minicelery.alias.producer: Producer
        minicelery.alias.version: VERSION __version__ version_info
        minicelery.message: uuid""",
    "kombu.common": "minicelery: Broadcast minicelery.message: uuid",
    "kombu.entity": "minicelery: Exchange Queue binding",
    "kombu.exceptions": """
        minicelery.exceptions: ConnectionError=BrokerUnavailable ContentDisallowed DecodeError EncodeError
            KombuError=MiniCeleryError OperationalError SerializationError""",
    "kombu.messaging": "minicelery.alias.producer: Producer",
    "kombu.serialization": "minicelery.serialization: dumps loads register unregister",
    "kombu.utils": "minicelery.alias.names: symbol_by_name minicelery.message: uuid",
    "kombu.utils.encoding": "minicelery.alias.encoding: bytes_to_str safe_repr safe_str str_to_bytes",
    "kombu.utils.functional": """
        minicelery.alias.functional: LRUCache dictfilter is_list lazy maybe_evaluate maybe_list memoize""",
    "kombu.utils.imports": "minicelery.alias.names: symbol_by_name",
    "kombu.utils.json": """
        minicelery.alias.encoding: dumps loads minicelery.serialization.json: register_type""",
    "kombu.utils.objects": "minicelery.alias.functional: cached_property",
    "kombu.utils.uuid": "minicelery.message: uuid",
}
