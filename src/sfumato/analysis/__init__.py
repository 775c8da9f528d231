"""The lecture's pictures: functions that compute them, apart from those that draw them."""
