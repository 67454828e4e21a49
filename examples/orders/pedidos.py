# pedidos.py
"""Los pedidos: un archivo JSON por pedido, en una carpeta que comparten el sitio y los workers."""
import json
import os
import time

CARPETA = os.environ.get('PEDIDOS_FOLDER', os.path.abspath('pedidos'))

def crear(pedido):
    os.makedirs(CARPETA, exist_ok=True)
    guardar({**pedido, 'creado': time.time(), 'status': 'pendiente'})

def guardar(pedido):
    """Escribe el pedido de una vez: quien lo lee ve el de antes o el de después."""
    borrador = _ruta(pedido['id']) + '.nuevo'
    with open(borrador, 'w') as f:
        json.dump(pedido, f)
    os.replace(borrador, _ruta(pedido['id']))

def leer(pedido_id):
    """El pedido, o None si no existe."""
    try:
        with open(_ruta(pedido_id)) as f:
            return json.load(f)
    except FileNotFoundError:
        return None

def pendientes(horas):
    """Los pedidos que llevan más de esas horas sin terminar."""
    limite = time.time() - horas * 3600
    nombres = os.listdir(CARPETA) if os.path.isdir(CARPETA) else []
    todos = [leer(nombre[:-len('.json')]) for nombre in nombres if nombre.endswith('.json')]
    return [pedido for pedido in todos if pedido['status'] == 'pendiente' and pedido['creado'] < limite]

def _ruta(pedido_id):
    return os.path.join(CARPETA, f'{pedido_id}.json')
