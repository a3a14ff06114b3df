import jax.numpy as jnp
def product_spectrum(js):
    p=js[0]
    for j in js[1:]: p=j@p
    return jnp.log10(jnp.linalg.svd(p,compute_uv=False))
