"""Care of whole stores: copy, export and import, verify, collect garbage. The engine never imports it."""
