"""The coordinator: asks the sites, aggregates their updates, hands out the expert budget, keeps the record."""
