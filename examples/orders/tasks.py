# tasks.py
import os
import time

import pedidos
from app import celery
from minicelery import chain

PAUSA = float(os.environ.get('PAUSA', '1'))

# Pasos del pedido: validar_pago → preparar_envio → notificar_cliente

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

# Si el worker muere a mitad de un paso, el paso se ejecuta otra vez: por eso cada uno
# mira primero lo que ya está hecho, y lo anota en cuanto está hecho.

@celery.task(bind=True, name='validar_pago', acks_late=True, reject_on_worker_lost=True)
def validar_pago(self, pedido_id):
    avanzar(self, 0, 'validar pago')
    pedido = pedidos.leer(pedido_id)
    if 'recibo' not in pedido:
        time.sleep(PAUSA)  # Simula la consulta al banco
        if pedido.get('importe', 0) <= 0:
            pedidos.guardar({**pedido, 'status': 'rechazado'})
            raise ValueError(f"pago rechazado: importe {pedido.get('importe')}")
        pedidos.guardar({**pedido, 'recibo': f"R-{pedido_id[:8]}"})
    return pedido_id

@celery.task(bind=True, name='preparar_envio', acks_late=True, reject_on_worker_lost=True)
def preparar_envio(self, pedido_id):
    avanzar(self, 1, 'preparar envío')
    pedido = pedidos.leer(pedido_id)
    if 'guia' not in pedido:
        time.sleep(PAUSA)  # Simula el trabajo en el almacén
        pedidos.guardar({**pedido, 'guia': f"MX-{pedido_id[:8]}"})
    return pedido_id

@celery.task(bind=True, name='notificar_cliente', acks_late=True, reject_on_worker_lost=True, max_retries=5)
def notificar_cliente(self, pedido_id):
    avanzar(self, 2, 'notificar cliente')
    pedido = pedidos.leer(pedido_id)
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
    pedidos.guardar({**pedido, 'status': 'completado'})
    return {'guia': pedido['guia'], 'intentos': intento, 'status': 'completado'}

# Tarea periódica: cada hora, alertas de los pedidos pendientes por más de 24 horas

celery.conf.beat_schedule = {
    'revisar-pedidos-pendientes': {
        'task': 'revisar_pendientes',
        'schedule': 3600.0,  # Cada 3600 segundos (1 hora)
    },
}

@celery.task(name='revisar_pendientes')
def revisar_pendientes():
    """Envía una alerta por cada pedido que lleva más de 24 horas pendiente."""
    atrasados = pedidos.pendientes(horas=24)
    for pedido in atrasados:
        enviar_alerta.delay(pedido['id'], pedido['email'])
    return {'alertas': len(atrasados)}

@celery.task(name='enviar_alerta')
def enviar_alerta(pedido_id, email):
    print(f"ALERTA: el pedido {pedido_id} de {email} lleva más de 24 horas pendiente")
