from django.contrib import admin
from django.urls import path

from myTasks.views import slowResponseView

urlpatterns = [
    path('admin/', admin.site.urls),
    path('slow/', slowResponseView),
]
