# settings.py
from pathlib import Path

SECRET_KEY = 'django-insecure-only-for-this-example'
INSTALLED_APPS = ['minicelery', 'usuarios']
DATABASES = {
    'default': {
        'ENGINE': 'django.db.backends.sqlite3',
        'NAME': Path(__file__).parent / 'db.sqlite3',
    }
}
DEFAULT_AUTO_FIELD = 'django.db.models.BigAutoField'
TIME_ZONE = 'UTC'

# Los correos se muestran en la terminal del worker
EMAIL_BACKEND = 'django.core.mail.backends.console.EmailBackend'
