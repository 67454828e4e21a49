# tasks.py
import time
from app import celery

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

@celery.task(name='generar_reporte')
def generar_reporte(tipo, filtros):
    """Genera un reporte en PDF (operación lenta)."""
    time.sleep(10)  # Simula procesamiento pesado
    return {
        "tipo": tipo,
        "archivo": f"/reportes/reporte_{tipo}_{filtros.get('mes')}.pdf",
        "status": "completado"
    }

@celery.task(bind=True, name='importar_datos')
def importar_datos(self, archivo_csv):
    """Importa datos desde un CSV con reporte de progreso."""
    import csv

    with open(archivo_csv, 'r') as f:
        lector = csv.reader(f)
        filas = list(lector)
        total = len(filas)

        for i, fila in enumerate(filas):
            # Procesar cada fila
            # ... lógica de importación ...

            # Actualizar progreso
            self.update_state(
                state='PROGRESS',
                meta={
                    'actual': i + 1,
                    'total': total,
                    'porcentaje': int((i + 1) / total * 100)
                }
            )

    return {'total_importados': total, 'status': 'completado'}

# Configuración de tareas periódicas
from minicelery.schedules import crontab

celery.conf.beat_schedule = {
    # Ejecutar cada 30 minutos
    'limpiar-sesiones-expiradas': {
        'task': 'limpiar_sesiones',
        'schedule': 1800.0,  # Cada 1800 segundos (30 min)
    },
    # Ejecutar todos los días a las 2:00 AM
    'backup-diario': {
        'task': 'backup_base_datos',
        'schedule': crontab(hour=2, minute=0),
    },
    # Ejecutar cada lunes a las 9:00 AM
    'reporte-semanal': {
        'task': 'generar_reporte',
        'schedule': crontab(hour=9, minute=0, day_of_week='monday'),
        'args': ('semanal', {'semana': 'actual'}),
    },
    # Ejecutar el día 1 de cada mes
    'facturacion-mensual': {
        'task': 'generar_facturas',
        'schedule': crontab(day_of_month=1, hour=6, minute=0),
    },
}

@celery.task(name='limpiar_sesiones')
def limpiar_sesiones():
    """Elimina sesiones expiradas de la base de datos."""
    # ... lógica de limpieza ...
    return {'eliminadas': 42}

@celery.task(name='backup_base_datos')
def backup_base_datos():
    """Realiza un backup de la base de datos."""
    import subprocess
    subprocess.run([
        'pg_dump', '-U', 'usuario', '-d', 'mi_app',
        '-f', f'/backups/backup_{time.strftime("%Y%m%d")}.sql'
    ])
    return {'status': 'backup completado'}

@celery.task(name='generar_facturas')
def generar_facturas():
    """Genera las facturas del mes; el tutorial la programa y no la escribe."""
    return {'status': 'facturado'}

@celery.task(
    bind=True,
    name='llamar_api_externa',
    max_retries=5,
    default_retry_delay=60  # Esperar 60 segundos entre reintentos
)
def llamar_api_externa(self, url, datos):
    """Llama a una API externa con reintentos automáticos."""
    import requests

    try:
        response = requests.post(url, json=datos, timeout=30)
        response.raise_for_status()
        return response.json()

    except requests.exceptions.ConnectionError as exc:
        # Reintentar con backoff exponencial
        raise self.retry(
            exc=exc,
            countdown=2 ** self.request.retries  # 1, 2, 4, 8, 16 seg
        )

    except requests.exceptions.HTTPError as exc:
        if exc.response.status_code >= 500:
            raise self.retry(exc=exc)  # Reintentar errores del servidor
        raise  # No reintentar errores 4xx (del cliente)

@celery.task(name='tarea_con_callback')
def tarea_con_callback():
    pass
