"""Drafters propose draft tokens; they never see the target, only its captured features."""
