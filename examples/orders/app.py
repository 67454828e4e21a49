# app.py
import os
from uuid import uuid4

from flask import Flask
from celery_app import make_celery

URL = os.environ.get('CELERY_BROKER_URL', 'redis://localhost:6379/0')

def create_app():
    app = Flask(__name__)
    app.config.update(
        CELERY_BROKER_URL=URL,
        CELERY_RESULT_BACKEND=URL,
        CELERY_TASK_SERIALIZER='json',
        CELERY_RESULT_SERIALIZER='json',
        CELERY_ACCEPT_CONTENT=['json'],
        CELERY_TIMEZONE='America/Mexico_City',
    )
    return app

app = create_app()
celery = make_celery(app)

from flask import abort, jsonify, request
import pedidos
from tasks import procesar_pedido

@app.route('/pedidos', methods=['POST'])
def crear_pedido():
    """Crea un pedido y encola la tarea de procesamiento."""
    pedido_id = str(uuid4())
    pedidos.crear({**request.get_json(), 'id': pedido_id})

    # El id de la tarea es el del pedido: no hay que guardarlo en otro lugar
    procesar_pedido.apply_async(args=[pedido_id], task_id=pedido_id)

    return jsonify({"pedido_id": pedido_id}), 202

from minicelery.result import AsyncResult

@app.route('/pedidos/<uuid:pedido_id>/estado')
def estado_pedido(pedido_id):
    """Devuelve el estado actual de la tarea: progreso, completado, error."""
    if pedidos.leer(pedido_id) is None:
        abort(404)
    # Una sola lectura: state e info preguntan cada uno de nuevo, y entre las dos la tarea sigue
    visto = AsyncResult(str(pedido_id), app=celery).as_dict()

    response = {
        "pedido_id": str(pedido_id),
        "estado": visto['state'],
    }

    if visto['state'] == 'SUCCESS':
        response['resultado'] = visto['result']
    elif visto['state'] == 'FAILURE':
        response['error'] = visto['error']['message']
    elif visto['state'] == 'PROGRESS':
        response['progreso'] = visto['result']

    return jsonify(response)
