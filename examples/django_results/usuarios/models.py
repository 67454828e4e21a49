# usuarios/models.py
from django.db import models

class User(models.Model):
    name = models.CharField(max_length=100)
    email = models.EmailField()
    sales = models.IntegerField(default=0)

    def __str__(self):
        return self.name
