# app.py
import os
from uuid import uuid4

from flask import Flask
from werkzeug.utils import secure_filename
from celery_app import make_celery

CARPETA = os.environ.get('UPLOAD_FOLDER', os.path.abspath('uploads'))

def create_app():
    app = Flask(__name__)
    app.config.update(
        CELERY_BROKER_URL='redis://localhost:6379/0',
        CELERY_RESULT_BACKEND='redis://localhost:6379/0',
        CELERY_TASK_SERIALIZER='json',
        CELERY_RESULT_SERIALIZER='json',
        CELERY_ACCEPT_CONTENT=['json'],
        CELERY_TIMEZONE='America/Mexico_City',
    )
    return app

app = create_app()
celery = make_celery(app)

from flask import request, jsonify
from tasks import enviar_correo, procesar_imagen, generar_reporte

@app.route('/registro', methods=['POST'])
def registrar_usuario():
    data = request.get_json()

    # ... crear usuario en la base de datos ...

    # delay() — forma simple, argumentos posicionales
    tarea = enviar_correo.delay(
        data['email'],
        'Bienvenido a nuestra plataforma',
        'Gracias por registrarte...'
    )

    return jsonify({
        "mensaje": "Usuario registrado",
        "tarea_correo_id": tarea.id  # ID para consultar el estado
    }), 201

@app.route('/procesar-foto', methods=['POST'])
def procesar_foto():
    # ... guardar la imagen subida ...
    foto = request.files['foto']
    extension = os.path.splitext(secure_filename(foto.filename))[1]
    ruta = os.path.join(CARPETA, uuid4().hex + extension)
    os.makedirs(CARPETA, exist_ok=True)
    foto.save(ruta)

    # apply_async() — forma avanzada con opciones adicionales
    tarea = procesar_imagen.apply_async(
        args=[ruta],
        countdown=5,            # Esperar 5 segundos antes de ejecutar
        expires=3600,           # La tarea expira en 1 hora
        retry=True,             # Reintentar en caso de fallo
        retry_policy={
            'max_retries': 3,
            'interval_start': 1,
            'interval_step': 2,
        }
    )

    return jsonify({"tarea_id": tarea.id}), 202

from minicelery.result import AsyncResult

@app.route('/tarea/<tarea_id>')
def estado_tarea(tarea_id):
    """Consulta el estado de una tarea en ejecución."""
    resultado = AsyncResult(tarea_id, app=celery)

    response = {
        "tarea_id": tarea_id,
        "estado": resultado.state,  # PENDING, STARTED, SUCCESS, FAILURE
    }

    if resultado.state == 'SUCCESS':
        response['resultado'] = resultado.result
    elif resultado.state == 'FAILURE':
        response['error'] = str(resultado.info)
    elif resultado.state == 'PROGRESS':
        response['progreso'] = resultado.info

    return jsonify(response)
