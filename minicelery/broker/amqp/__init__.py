"""RabbitMQ, or any server that speaks AMQP 0-9-1 as it does: queues and reply queues."""

from __future__ import annotations

from minicelery.broker.amqp.broker import AMQPBroker

__all__ = ["AMQPBroker"]
