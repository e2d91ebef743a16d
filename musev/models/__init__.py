"""Networks: plain torch, one device, published parameter names."""
