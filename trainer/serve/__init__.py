"""An HTTP server that answers rows with an exported model, without torch and without code of the export folder."""
