# usuarios/correo.py
import time

from django.core.mail.backends import filebased

class EmailBackend(filebased.EmailBackend):
    """Tan lento como un servidor de correo"""

    def send_messages(self, email_messages):
        time.sleep(3)
        return super().send_messages(email_messages)
