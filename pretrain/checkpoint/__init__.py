"""Checkpoints that are whole or absent: fragments by rank, every file hashed, the manifest last.

    checkpoints/step-00000100/rank-00000-of-00002.safetensors   what each rank owns, by fragment
    checkpoints/step-00000100/manifest.json                     counters, config, code, hashes; written last
    checkpoints/latest                                          name of the newest one, for people and scripts

A checkpoint is written under a name ending in `.part`; once all ranks have agreed that their files are on
disk, rank 0 writes the manifest, renames the folder and moves the pointer, each atomically. Since files hold
fragments by name and place, any world size and ZeRO stage reads any checkpoint, and nothing is pickled.
"""

from pretrain.checkpoint.checkpoints import Checkpoints as Checkpoints
from pretrain.checkpoint.encoder import load_encoder as load_encoder
from pretrain.checkpoint.encoder import read_run_config as read_run_config
from pretrain.checkpoint.encoder import untrained_encoder as untrained_encoder
from pretrain.checkpoint.fragments import StoredFragments as StoredFragments
from pretrain.checkpoint.manifest import FOLDER as FOLDER
from pretrain.checkpoint.manifest import read_manifest as read_manifest
from pretrain.checkpoint.resume import is_begun as is_begun
from pretrain.checkpoint.sending import is_sent as is_sent
from pretrain.checkpoint.task import patiently as patiently
from pretrain.checkpoint.whole import chosen_checkpoint as chosen_checkpoint
from pretrain.checkpoint.whole import newest_named as newest_named
from pretrain.checkpoint.whole import newest_whole as newest_whole
from pretrain.checkpoint.whole import step_folders as step_folders
from pretrain.checkpoint.whole import verify as verify
