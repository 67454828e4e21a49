# tasks.py
import os
import time

import pedidos
from app import celery
from minicelery import chain

PAUSA = float(os.environ.get('PAUSA', '1'))

@celery.task(name='enviar_correo')
def enviar_correo(destinatario, asunto, cuerpo):
    """Tarea para enviar un correo electrónico."""
    # Simulación de envío (en producción usarías Flask-Mail)
    time.sleep(3)  # Simula la latencia del servidor SMTP
    print(f"Correo enviado a {destinatario}: {asunto}")
    return {
        "destinatario": destinatario,
        "status": "enviado"
    }

@celery.task(name='procesar_imagen')
def procesar_imagen(ruta_imagen):
    """Tarea para redimensionar y optimizar una imagen."""
    from PIL import Image

    img = Image.open(ruta_imagen)

    # Crear diferentes tamaños
    tamaños = {
        'thumbnail': (150, 150),
        'medium': (800, 600),
        'large': (1920, 1080)
    }

    resultados = {}
    for nombre, tamaño in tamaños.items():
        copia = img.copy()
        copia.thumbnail(tamaño)
        ruta_salida = ruta_imagen.replace('.', f'_{nombre}.')
        copia.save(ruta_salida, optimize=True, quality=85)
        resultados[nombre] = ruta_salida

    return resultados

# Ejercicio práctico: validar_pago → preparar_envio → notificar_cliente

@celery.task(bind=True, name='procesar_pedido')
def procesar_pedido(self, pedido_id):
    """Procesa un pedido en 3 pasos; esta tarea termina cuando termina el último."""
    raise self.replace(chain(
        validar_pago.s(pedido_id),
        preparar_envio.s(),
        notificar_cliente.s()
    ))

def avanzar(tarea, actual, paso):
    """Reporta el progreso en la tarea del pedido, que es la raíz de la cadena."""
    tarea.update_state(
        task_id=tarea.request.root_id,
        state='PROGRESS',
        meta={'actual': actual, 'total': 3, 'paso': paso, 'porcentaje': int(actual / 3 * 100)}
    )

@celery.task(bind=True, name='validar_pago')
def validar_pago(self, pedido_id):
    avanzar(self, 0, 'validar pago')
    time.sleep(PAUSA)  # Simula la consulta al banco
    pedido = pedidos.leer(pedido_id)
    if pedido.get('importe', 0) <= 0:
        raise ValueError(f"pago rechazado: importe {pedido.get('importe')}")
    return pedido

@celery.task(bind=True, name='preparar_envio')
def preparar_envio(self, pedido):
    avanzar(self, 1, 'preparar envío')
    time.sleep(PAUSA)  # Simula el trabajo en el almacén
    return {**pedido, 'guia': f"MX-{pedido['id'][:8]}"}

@celery.task(bind=True, name='notificar_cliente', max_retries=5)
def notificar_cliente(self, pedido):
    avanzar(self, 2, 'notificar cliente')
    try:
        intento = self.request.retries + 1
        # Simula un servidor de correo que al principio no responde
        if intento <= pedido.get('correos_que_fallan', 0):
            raise ConnectionError('el servidor de correo no responde')
        print(f"Correo enviado a {pedido['email']}: su envío es {pedido['guia']}")
    except ConnectionError as exc:
        # Reintentar con backoff exponencial
        raise self.retry(
            exc=exc,
            countdown=PAUSA * 2 ** self.request.retries  # 1, 2, 4, 8, 16 seg
        )
    return {'guia': pedido['guia'], 'intentos': intento, 'status': 'completado'}
