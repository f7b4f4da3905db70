"""Record activations and look at an attention head.

python examples/record.py
"""

import interp

model = interp.load("zoo:books")
cache = model.record("The war lasted from 1805 to 1812.", sites=["blocks.*.resid_post", "blocks.2.attn.pattern"])
print(cache.to_frame().to_string(index=False))

pattern = cache["blocks.2.attn.pattern"]  # [batch, head, query, key]
print("mass on the first token, by head:", [round(x, 2) for x in pattern[0, :, 1:, 0].mean(-1).tolist()])
