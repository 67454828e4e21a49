"""Tables of results."""

from django.db import migrations, models
from django.utils import timezone


class Migration(migrations.Migration):
    initial = True

    dependencies: list[tuple[str, str]] = []

    operations = [
        migrations.CreateModel(
            name="ChordCounter",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("group_id", models.CharField(max_length=255, unique=True)),
                ("sub_tasks", models.TextField()),
                ("count", models.IntegerField()),
                ("size", models.IntegerField()),
                ("passes", models.BooleanField()),
                ("body", models.TextField()),
                ("payload", models.BinaryField()),
                ("place", models.CharField(max_length=255)),
                ("countdown", models.FloatField(null=True)),
                ("owed", models.FloatField(null=True)),
                ("sent", models.FloatField(null=True)),
                ("tries", models.IntegerField(default=0)),
                ("claimed", models.CharField(default="", max_length=255)),
                ("until", models.FloatField(null=True)),
                ("expires", models.FloatField(db_index=True, null=True)),
            ],
            options={
                "indexes": [models.Index(fields=["place", "owed"], name="minicelery_chord_owed")],
            },
        ),
        migrations.CreateModel(
            name="ChordPart",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("group_id", models.CharField(max_length=255)),
                ("task_id", models.CharField(max_length=255)),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(fields=("group_id", "task_id"), name="minicelery_chord_part_once")
                ],
            },
        ),
        migrations.CreateModel(
            name="GroupResult",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("group_id", models.CharField(max_length=255, unique=True, verbose_name="group id")),
                ("date_created", models.DateTimeField(auto_now_add=True, verbose_name="created")),
                ("date_done", models.DateTimeField(auto_now=True, verbose_name="changed")),
                ("content_type", models.CharField(max_length=128)),
                ("content_encoding", models.CharField(max_length=64)),
                ("result", models.TextField(default=None, editable=False, null=True)),
                ("expires", models.FloatField(db_index=True, default=None, editable=False, null=True)),
            ],
            options={
                "verbose_name": "group result",
                "verbose_name_plural": "group results",
                "ordering": ("-date_done",),
                "indexes": [
                    models.Index(fields=["date_created"], name="minicelery_group_created"),
                    models.Index(fields=["date_done"], name="minicelery_group_done"),
                ],
            },
        ),
        migrations.CreateModel(
            name="TaskResult",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("task_id", models.CharField(max_length=255, unique=True, verbose_name="task id")),
                (
                    "periodic_task_name",
                    models.CharField(max_length=255, null=True, verbose_name="periodic task"),
                ),
                ("task_name", models.CharField(max_length=255, null=True, verbose_name="task")),
                ("task_args", models.TextField(null=True, verbose_name="arguments")),
                ("task_kwargs", models.TextField(null=True, verbose_name="keyword arguments")),
                ("status", models.CharField(default="PENDING", max_length=50, verbose_name="state")),
                ("worker", models.CharField(default=None, max_length=100, null=True)),
                ("content_type", models.CharField(max_length=128)),
                ("content_encoding", models.CharField(max_length=64)),
                ("result", models.TextField(default=None, editable=False, null=True)),
                (
                    "date_created",
                    models.DateTimeField(default=timezone.now, editable=False, verbose_name="created"),
                ),
                ("date_started", models.DateTimeField(default=None, null=True, verbose_name="started")),
                ("date_done", models.DateTimeField(auto_now=True, verbose_name="changed")),
                ("traceback", models.TextField(blank=True, null=True)),
                ("meta", models.TextField(default=None, editable=False, null=True)),
                ("document", models.BinaryField(default=None, null=True)),
                ("expires", models.FloatField(db_index=True, default=None, editable=False, null=True)),
                ("version", models.BigIntegerField(default=0, editable=False)),
            ],
            options={
                "verbose_name": "task result",
                "verbose_name_plural": "task results",
                "ordering": ("-date_done",),
                "indexes": [
                    models.Index(fields=["task_name"], name="minicelery_result_name"),
                    models.Index(fields=["status"], name="minicelery_result_status"),
                    models.Index(fields=["worker"], name="minicelery_result_worker"),
                    models.Index(fields=["date_created"], name="minicelery_result_created"),
                    models.Index(fields=["date_done"], name="minicelery_result_done"),
                    models.Index(fields=["periodic_task_name"], name="minicelery_result_periodic"),
                ],
            },
        ),
    ]
