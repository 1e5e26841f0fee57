"""Simulated worlds: an object that actions push, leaves that distract, walls that never move."""

from data_pipeline.worlds.motion import actions_of as actions_of
from data_pipeline.worlds.motion import move as move
from data_pipeline.worlds.scene import Scene as Scene
from data_pipeline.worlds.scene import State as State
from data_pipeline.worlds.scene import begin as begin
from data_pipeline.worlds.scene import render as render
from data_pipeline.worlds.scene import state_names as state_names
from data_pipeline.worlds.scene import state_row as state_row
from data_pipeline.worlds.scene import step as step
from data_pipeline.worlds.settings import World as World
from data_pipeline.worlds.write import LIST_FILE as LIST_FILE
from data_pipeline.worlds.write import render_world as render_world
from data_pipeline.worlds.write import simulated as simulated
