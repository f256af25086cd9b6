"""The bus on Apache Kafka: `KafkaBus` in bus.py, its settings in settings.py."""
