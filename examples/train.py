"""Train a small sparse autoencoder on a model's stream, in memory.

python examples/train.py            the same from the command line:
interp train sae zoo:books --site blocks.2.resid_post --k 16 --latents 1024 --steps 300 -o runs/sae
"""

import tempfile

import interp
from interp.dictionaries import RowsSource, TopK, TrainConfig, evaluate, train
from interp.store.recording import record_text
from interp.texts import default_text

site = "blocks.2.resid_post"
model = interp.load("zoo:books")
with tempfile.TemporaryDirectory() as folder:
    store = record_text(model, [site], default_text(), f"{folder}/activations", tokens=20_000)
    rows = store.sample(20_000, seed=0)[site].float()
    source, held_out = RowsSource(rows[:16_000]), RowsSource(rows[16_000:])
    sae = train(TrainConfig(TopK(k=16), latents=512, steps=100, batch=512), source, f"{folder}/sae")
    measured = evaluate(sae, held_out)
print(f"FVU {measured.fvu:.3f} with {measured.l0:.1f} active latents a token")
