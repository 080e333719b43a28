from django.db import models


class Order(models.Model):
    customer_id = models.UUIDField()
    status = models.CharField(max_length=20, default="cooking")
    courier = models.CharField(max_length=100, blank=True)
