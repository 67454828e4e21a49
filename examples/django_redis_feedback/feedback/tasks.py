# feedback/tasks.py

from time import sleep

from django.core.mail import send_mail
from minicelery import shared_task


@shared_task
def send_feedback_email(address, message):
    """Thank for a message, as slowly as a mail server may."""
    sleep(3)
    send_mail(
        subject="Your feedback",
        message=f"Thank you! You wrote:\n\n{message}\n",
        from_email="support@example.com",
        recipient_list=[address],
    )
