"""What another bundle's lists would have got, estimated from a log whose lists were drawn with known chances."""
