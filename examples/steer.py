"""Steer a model while it writes, and see that leaving the context leaves no trace.

python examples/steer.py
"""

import interp

model = interp.load("zoo:books", dtype="float32")
site = "blocks.2.resid_post"
sad = model.record("She wept, for her grief was bitter and her heart was broken.", site).rows(site).mean(0)
calm = model.record("The class statement defines a class object in Python.", site).rows(site).mean(0)

print("as it is:", model.generate("I think", max_new_tokens=24))
with model.edit(interp.Steer(site, calm - sad, alpha=1.5, pos="generated")):
    print("steered: ", model.generate("I think", max_new_tokens=24))
print("again:   ", model.generate("I think", max_new_tokens=24))
