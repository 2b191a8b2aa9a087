"""The families of measurements behind `assistant.measure`; each knows pixels only, never files, models or classes."""
