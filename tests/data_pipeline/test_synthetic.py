from pathlib import Path

import numpy as np

from data_pipeline.decode import open_video
from data_pipeline.synthetic import (
    ACTION_NAMES,
    COLOURS,
    MAX_SPEED,
    STATE_NAMES,
    Look,
    generator,
    render_frames,
    render_texture,
    render_videos,
    simulate,
)


def test_equal_seeds_give_equal_bytes_for_any_number_of_workers(
    look: Look, videos: Path, tmp_path: Path
) -> None:
    render_videos(tmp_path, 5, seed=3, workers=2, look=look)
    for ours in sorted(tmp_path.glob("*.mp4")):
        assert ours.read_bytes() == (videos / ours.name).read_bytes()
        one, two = np.load(ours.with_suffix(".npz")), np.load(videos / ours.with_suffix(".npz").name)
        assert all(np.array_equal(one[name], two[name]) for name in one.files)
    assert len(list(tmp_path.iterdir())) == 2 * 5


def test_the_object_stays_inside_and_moves_as_its_velocity_says() -> None:
    for index in range(20):
        states, actions = simulate(generator(0, index), 96)
        x, v, radius = states[:, :2], states[:, 2:4], states[:, 6:7]
        assert states.shape == (96, len(STATE_NAMES))
        assert actions.shape == (96, len(ACTION_NAMES))
        assert np.all(x >= radius - 1e-5)
        assert np.all(x <= 1 - radius + 1e-5)
        assert np.all(np.hypot(*v.T) <= MAX_SPEED + 1e-5)
        step, free = np.diff(x, axis=0) * 16, np.sign(v[1:]) == np.sign(v[:-1])
        bounced = (x[1:] - radius[1:] < 0.1) | (1 - radius[1:] - x[1:] < 0.1)
        np.testing.assert_allclose(step[free & ~bounced], v[1:][free & ~bounced], atol=1e-4)


def test_an_action_is_the_change_of_velocity_it_causes() -> None:
    states, actions = simulate(generator(0, 1), 96)
    change = np.diff(states[:, 2:4], axis=0) * 16
    radius = states[0, 6]
    inside = np.all((states[:, :2] > radius + 0.1) & (states[:, :2] < 0.9 - radius), axis=1)
    slow = np.hypot(*states[:, 2:4].T) < MAX_SPEED - 0.2
    free = (inside & slow)[:-1] & (inside & slow)[1:]
    assert free.sum() > 3
    np.testing.assert_allclose(change[free], actions[:-1][free], atol=1e-3)


def test_the_object_is_where_the_state_says(videos: Path) -> None:
    path = videos / "video-000002.mp4"
    known = np.load(path.with_suffix(".npz"))
    assert tuple(known["state_names"]) == STATE_NAMES
    with open_video(path) as video:
        assert len(video.timestamps_s) == len(known["t"]) == len(known["state"]) == len(known["actions"])
        np.testing.assert_allclose(video.timestamps_s, known["t"], atol=1e-6)
        for index in (0, 20, 39):
            image = video.frames([index])[0].astype(float)
            x, y, colour = known["state"][index][[0, 1, 8]]
            distance = np.abs(image - COLOURS[int(colour)]).sum(-1)
            rows, columns = np.nonzero(distance < 90)
            assert abs(columns.mean() / 64 - x) < 0.04
            assert abs(rows.mean() / 64 - y) < 0.06


def test_the_background_drifts_by_itself() -> None:
    texture = render_texture(generator(0, 0), 64)
    still = np.zeros((2, len(STATE_NAMES)), np.float32)
    still[:, 6] = 0.0
    still[:, :2] = -1.0  # the object outside
    still[1, 4] = 0.25
    frames = render_frames(still, texture, 32)
    np.testing.assert_array_equal(frames[0][:, 8:], frames[1][:, :-8])
