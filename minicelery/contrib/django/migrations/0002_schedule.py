"""Tables of the schedule."""

import django.core.validators
import django.db.models.deletion
import minicelery.contrib.django.fields
import minicelery.contrib.django.models.schedule
from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True

    dependencies = [
        ("minicelery", "0001_results"),
    ]

    operations = [
        migrations.CreateModel(
            name="ClockedSchedule",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("clocked_time", models.DateTimeField(verbose_name="time")),
            ],
            options={
                "verbose_name": "point in time",
                "verbose_name_plural": "points in time",
                "ordering": ("clocked_time",),
            },
        ),
        migrations.CreateModel(
            name="CrontabSchedule",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                (
                    "minute",
                    models.CharField(default="*", help_text='Such as "0,30" or "*/15".', max_length=240),
                ),
                ("hour", models.CharField(default="*", help_text='Such as "8-17".', max_length=96)),
                (
                    "day_of_month",
                    models.CharField(default="*", max_length=124, verbose_name="day of the month"),
                ),
                (
                    "month_of_year",
                    models.CharField(
                        default="*", help_text="1 to 12, or jan to dec.", max_length=64, verbose_name="month"
                    ),
                ),
                (
                    "day_of_week",
                    models.CharField(
                        default="*",
                        help_text="0 to 7, both are Sunday; or mon to sun.",
                        max_length=64,
                        verbose_name="day of the week",
                    ),
                ),
                (
                    "timezone",
                    minicelery.contrib.django.fields.TimeZoneField(
                        default=minicelery.contrib.django.models.schedule.default_zone,
                        help_text='Such as "Europe/Madrid".',
                        max_length=63,
                    ),
                ),
            ],
            options={
                "verbose_name": "crontab",
                "verbose_name_plural": "crontabs",
                "ordering": ("month_of_year", "day_of_month", "day_of_week", "hour", "minute", "timezone"),
            },
        ),
        migrations.CreateModel(
            name="IntervalSchedule",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                (
                    "every",
                    models.IntegerField(
                        validators=[django.core.validators.MinValueValidator(1)],
                        verbose_name="number of periods",
                    ),
                ),
                (
                    "period",
                    models.CharField(
                        choices=[
                            ("days", "Days"),
                            ("hours", "Hours"),
                            ("minutes", "Minutes"),
                            ("seconds", "Seconds"),
                            ("microseconds", "Microseconds"),
                        ],
                        max_length=24,
                    ),
                ),
            ],
            options={
                "verbose_name": "interval",
                "verbose_name_plural": "intervals",
                "ordering": ("period", "every"),
            },
        ),
        migrations.CreateModel(
            name="PeriodicTasks",
            fields=[
                (
                    "ident",
                    models.SmallIntegerField(default=1, primary_key=True, serialize=False, unique=True),
                ),
                ("last_update", models.DateTimeField()),
            ],
            options={
                "verbose_name": "change of the schedule",
                "verbose_name_plural": "changes of the schedule",
            },
        ),
        migrations.CreateModel(
            name="SolarSchedule",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                (
                    "event",
                    models.CharField(
                        choices=[
                            ("dawn_astronomical", "Dawn astronomical"),
                            ("dawn_civil", "Dawn civil"),
                            ("dawn_nautical", "Dawn nautical"),
                            ("dusk_astronomical", "Dusk astronomical"),
                            ("dusk_civil", "Dusk civil"),
                            ("dusk_nautical", "Dusk nautical"),
                            ("solar_noon", "Solar noon"),
                            ("sunrise", "Sunrise"),
                            ("sunset", "Sunset"),
                        ],
                        max_length=24,
                    ),
                ),
                (
                    "latitude",
                    models.DecimalField(
                        decimal_places=6,
                        help_text="Degrees; north is positive.",
                        max_digits=9,
                        validators=[
                            django.core.validators.MinValueValidator(-90),
                            django.core.validators.MaxValueValidator(90),
                        ],
                    ),
                ),
                (
                    "longitude",
                    models.DecimalField(
                        decimal_places=6,
                        help_text="Degrees; east is positive.",
                        max_digits=9,
                        validators=[
                            django.core.validators.MinValueValidator(-180),
                            django.core.validators.MaxValueValidator(180),
                        ],
                    ),
                ),
            ],
            options={
                "verbose_name": "solar event",
                "verbose_name_plural": "solar events",
                "ordering": ("event", "latitude", "longitude"),
                "unique_together": {("event", "latitude", "longitude")},
            },
        ),
        migrations.CreateModel(
            name="PeriodicTask",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                (
                    "name",
                    models.CharField(help_text="Of this entry of the schedule.", max_length=200, unique=True),
                ),
                (
                    "task",
                    models.CharField(
                        help_text='The task to be sent, such as "shop.tasks.tidy".', max_length=200
                    ),
                ),
                (
                    "args",
                    models.TextField(
                        blank=True,
                        default="[]",
                        help_text='As JSON: ["a", 1]',
                        validators=[minicelery.contrib.django.models.schedule.check_list],
                        verbose_name="arguments",
                    ),
                ),
                (
                    "kwargs",
                    models.TextField(
                        blank=True,
                        default="{}",
                        help_text='As JSON: {"n": 1}',
                        validators=[minicelery.contrib.django.models.schedule.check_object],
                        verbose_name="keyword arguments",
                    ),
                ),
                ("queue", models.CharField(blank=True, default=None, max_length=200, null=True)),
                ("exchange", models.CharField(blank=True, default=None, max_length=200, null=True)),
                ("routing_key", models.CharField(blank=True, default=None, max_length=200, null=True)),
                (
                    "headers",
                    models.TextField(
                        blank=True,
                        default="{}",
                        help_text="As JSON.",
                        validators=[minicelery.contrib.django.models.schedule.check_object],
                    ),
                ),
                (
                    "priority",
                    models.PositiveIntegerField(
                        blank=True,
                        default=None,
                        help_text="0 to 9, where 0 is served first; on RabbitMQ 0 to 255, where 255 is.",
                        null=True,
                        validators=[django.core.validators.MaxValueValidator(255)],
                    ),
                ),
                (
                    "expires",
                    models.DateTimeField(
                        blank=True,
                        help_text="Not sent after that, and not run if it is sent before.",
                        null=True,
                    ),
                ),
                (
                    "expire_seconds",
                    models.PositiveIntegerField(
                        blank=True,
                        help_text="Each run is given up if it has not begun after so many seconds.",
                        null=True,
                    ),
                ),
                (
                    "one_off",
                    models.BooleanField(
                        default=False, help_text="Disabled once it has been sent.", verbose_name="once only"
                    ),
                ),
                (
                    "start_time",
                    models.DateTimeField(blank=True, help_text="Not sent before that.", null=True),
                ),
                ("enabled", models.BooleanField(default=True)),
                (
                    "last_run_at",
                    models.DateTimeField(blank=True, editable=False, null=True, verbose_name="last run"),
                ),
                (
                    "total_run_count",
                    models.PositiveIntegerField(default=0, editable=False, verbose_name="runs"),
                ),
                ("date_changed", models.DateTimeField(auto_now=True, verbose_name="changed")),
                ("description", models.TextField(blank=True)),
                (
                    "clocked",
                    models.ForeignKey(
                        blank=True,
                        null=True,
                        on_delete=django.db.models.deletion.CASCADE,
                        to="minicelery.clockedschedule",
                    ),
                ),
                (
                    "crontab",
                    models.ForeignKey(
                        blank=True,
                        null=True,
                        on_delete=django.db.models.deletion.CASCADE,
                        to="minicelery.crontabschedule",
                    ),
                ),
                (
                    "interval",
                    models.ForeignKey(
                        blank=True,
                        null=True,
                        on_delete=django.db.models.deletion.CASCADE,
                        to="minicelery.intervalschedule",
                    ),
                ),
                (
                    "solar",
                    models.ForeignKey(
                        blank=True,
                        null=True,
                        on_delete=django.db.models.deletion.CASCADE,
                        to="minicelery.solarschedule",
                    ),
                ),
            ],
            options={
                "verbose_name": "periodic task",
                "verbose_name_plural": "periodic tasks",
            },
        ),
    ]
