from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True
    dependencies = []
    operations = [
        migrations.CreateModel(
            name="Order",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("customer_id", models.UUIDField()),
                ("status", models.CharField(default="cooking", max_length=20)),
                ("courier", models.CharField(blank=True, max_length=100)),
            ],
        ),
    ]
