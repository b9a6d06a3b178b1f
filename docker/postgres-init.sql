-- MLflow's own database beside Airflow's; PostgreSQL runs this when its volume is new.
CREATE DATABASE mlflow;
