"""How ``train_attention`` fits the attended ranking and whether it may be used."""
