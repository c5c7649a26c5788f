#!/bin/sh
# Captures the terminal session of the README in a real terminal (tmux, 90 columns) and prints it.
# Run it from the repository's root after `make full`, on a machine with 3 GB of free disk: sh docs/session.sh
set -eu
programs=$PWD/.venv/bin
folder=$(mktemp -d)
trap 'tmux -L wtool-session kill-server 2>/dev/null || true; rm -rf "$folder"' EXIT
cd "$folder"

# GPT-2 with random weights and AdamW's state, as PyTorch Lightning saves it.
"$programs/python" - <<'PYTHON'
import torch
import transformers

torch.manual_seed(0)
model = transformers.GPT2LMHeadModel(transformers.GPT2Config())
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
for parameter in model.parameters():
    parameter.grad = torch.zeros_like(parameter)
optimizer.step()
checkpoint = {
    "epoch": 3,
    "global_step": 61440,
    "pytorch-lightning_version": "2.4.0",
    "state_dict": {f"model.{key}": value for key, value in model.state_dict().items()},
    "hyper_parameters": {"lr": 3e-4, "warmup": 2000},
    "optimizer_states": [optimizer.state_dict()],
    "lr_schedulers": [],
}
torch.save(checkpoint, "last.ckpt")
PYTHON

tmux -L wtool-session -f /dev/null new-session -d -s session -x 90 -y 300 \
    "env PS1='$ ' PATH='$programs:$PATH' LANG=C.UTF-8 bash --norc"
sleep 1
type_in() {
    tmux -L wtool-session send-keys -t session "$1; tmux -L wtool-session wait-for -S done" Enter
    tmux -L wtool-session wait-for done
    sleep 1
}
type_in "wtool inspect last.ckpt | head -38"
type_in "wtool convert last.ckpt gpt2.safetensors --strip-prefix model. --dtype bf16 --verify"
type_in "wtool convert gpt2.safetensors gpt2.ckpt -q"
type_in "wtool inspect gpt2.safetensors --digest | grep digest"
type_in "wtool inspect gpt2.ckpt --digest | grep digest"
# -J joins the lines that the terminal wrapped.
tmux -L wtool-session capture-pane -p -J -t session | sed -e 's/; tmux -L wtool-session wait-for -S done$//' -e 's/ *$//' -e '/^\$$/d' |
    awk 'NF { print; blank = 0; next } !blank { print; blank = 1 }'
