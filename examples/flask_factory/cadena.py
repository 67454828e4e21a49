# cadena.py
import sys

import app  # primero la aplicación: ella importa las tareas
from tasks import enviar_correo, procesar_imagen

# Callbacks: ejecutar una tarea al completarse otra
from minicelery import chain

# Encadenar tareas: una después de otra
cadena = chain(
    procesar_imagen.s(sys.argv[1]),
    enviar_correo.s('admin@site.com', 'Imagen procesada', 'Listo')
)
cadena.apply_async()
