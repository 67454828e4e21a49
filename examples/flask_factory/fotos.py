# fotos.py
import sys

import app  # primero la aplicación: ella importa las tareas
from tasks import enviar_correo, procesar_imagen

# Callbacks: ejecutar una tarea al completarse otra
from minicelery import chain

# Encadenar tareas: una después de otra
cadena = chain(
    procesar_imagen.s(sys.argv[1]),
    enviar_correo.si('admin@site.com', 'Imagen procesada', 'Listo')
)

if __name__ == '__main__':
    resultado = cadena.apply_async()
    print(resultado.parent.get(timeout=30))  # lo que devolvió procesar_imagen
    print(resultado.get(timeout=30))         # lo que devolvió enviar_correo
