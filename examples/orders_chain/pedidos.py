# pedidos.py
"""Los pedidos: un archivo JSON por pedido, en una carpeta que comparten el sitio y los workers."""
import json
import os

CARPETA = os.environ.get('PEDIDOS_FOLDER', os.path.abspath('pedidos'))

def guardar(pedido):
    os.makedirs(CARPETA, exist_ok=True)
    with open(_ruta(pedido['id']), 'w') as f:
        json.dump(pedido, f)

def leer(pedido_id):
    """El pedido, o None si no existe."""
    try:
        with open(_ruta(pedido_id)) as f:
            return json.load(f)
    except FileNotFoundError:
        return None

def _ruta(pedido_id):
    return os.path.join(CARPETA, f'{pedido_id}.json')
