# tasks.py
import os
import django
from minicelery import Celery
from datetime import date
from django.core.mail import send_mail

os.environ.setdefault('DJANGO_SETTINGS_MODULE', 'proyecto.settings')
django.setup()

from usuarios.models import User

app = Celery('tasks', broker='amqp://guest:guest@localhost')
app.config_from_object('django.conf:settings', namespace='CELERY')

@app.task
def add(x, y):
    return x + y

@app.task
def generate_report():
    # Código para generar el informe diario
    report_data = []
    for user in User.objects.all():
        report_data.append({'user': user.name, 'sales': user.sales})
    return report_data

@app.task
def send_email(user_id):
    # Código para enviar el correo electrónico
    user = User.objects.get(id=user_id)
    send_mail(subject='Nuevo registro creado', message='Se ha creado un nuevo registro.', from_email='your_email@example.com', recipient_list=[user.email])

if __name__ == '__main__':
    result = add.delay(2, 3)
    print(result.get())

    # Ejecutar la tarea de manera asíncrona
    report_task = generate_report.delay()
    print("Report task has been submitted")

    # Ejecutar la tarea de manera asíncronas
    send_email_task = send_email.delay(1)
    print("Email task has been submitted")
