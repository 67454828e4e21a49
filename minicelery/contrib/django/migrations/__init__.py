"""The tables of `minicelery.contrib.django.models`, step by step."""
