"""Columns that Django does not have."""

from __future__ import annotations

from typing import Any
from zoneinfo import ZoneInfo

from django.core.exceptions import ValidationError
from django.db import models


class TimeZoneField(models.CharField):
    """The name of a time zone; in Python a ZoneInfo."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("max_length", 63)
        super().__init__(*args, **kwargs)

    def to_python(self, value: Any) -> ZoneInfo | None:
        """The zone.  Raises ValidationError."""
        if value is None or isinstance(value, ZoneInfo):
            return value
        try:
            return ZoneInfo(str(value))
        except (ValueError, OSError, LookupError) as error:
            raise ValidationError(
                f"{str(value)[:63]!r} is no time zone; accepted: names such as 'Europe/Madrid'"
            ) from error

    def from_db_value(self, value: Any, expression: Any, connection: Any) -> Any:
        """The zone, or the text where this machine does not know it: whoever uses it says so."""
        try:
            return self.to_python(value)
        except ValidationError:
            return value

    def get_prep_value(self, value: Any) -> str | None:
        """Its name."""
        return None if value is None else getattr(value, "key", str(value))

    def value_to_string(self, obj: Any) -> str:
        """For fixtures."""
        return self.get_prep_value(self.value_from_object(obj)) or ""

    def validate(self, value: Any, model_instance: Any) -> None:
        """Its text is checked: blank, and length."""
        super().validate(self.get_prep_value(value), model_instance)

    def run_validators(self, value: Any) -> None:
        """Those of the text."""
        super().run_validators(self.get_prep_value(value))
