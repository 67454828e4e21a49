# usuarios/admin.py
from django.contrib import admin

from .models import User

@admin.register(User)
class UserAdmin(admin.ModelAdmin):
    list_display = ('name', 'email', 'sales')

    def save_model(self, request, obj, form, change):
        super().save_model(request, obj, form, change)
        if not change:
            from tasks import send_email  # carga Django, que aquí se está cargando todavía

            send_email.delay_on_commit(obj.id)
