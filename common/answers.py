"""What environments answer: taken where it has one meaning, else refused in a line that names environment and value."""

import contextlib
import math
import pathlib
import sys
import traceback
from collections.abc import Iterator
from typing import Any, NoReturn

from common.errors import UserError
from common.minari_envs import flatten_observation

import gymnasium
import numpy as np

LIBRARY = pathlib.Path(gymnasium.__file__).parent  # whose lines nobody has to mend


def is_image(space: gymnasium.Space) -> bool:
    """Whether observations are images [height, width, channels], grey, in colours, or in colours and one more."""
    is_box = isinstance(space, gymnasium.spaces.Box) and space.dtype == np.uint8
    return is_box and len(space.shape) == 3 and space.shape[2] in (1, 3, 4)


class Answers:
    """Reads what one environment answers.

    Every method raises `UserError` for what has no meaning, or several.
    """

    def __init__(self, env: gymnasium.Env):
        """Args:
        env: environment.
        """
        self.name = env.spec.id if env.spec is not None else type(env.unwrapped).__name__
        space = env.observation_space  # once: an environment of OGBench's with images renders one each time
        self.image_shape = space.shape if is_image(space) else None
        self.size = gymnasium.spaces.flatdim(space)

    @contextlib.contextmanager
    def asking(self, call: str) -> Iterator[None]:
        """What the environment raises meanwhile is shown from its own lines on.

        Args:
            call: 'reset' or 'step'.
        """
        try:
            yield
        except Exception as error:  # of whatever kind
            lines = traceback.extract_tb(error.__traceback__)
            own = [line for line in lines[1:] if LIBRARY not in pathlib.Path(line.filename).parents]
            print(f"{self.name}, {call}():", *traceback.format_list(own), sep="\n", end="", file=sys.stderr, flush=True)
            reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            raise UserError(f"{self.name}: {call}() raised {reason}; once that is mended, --resume goes on") from error

    def parts(self, call: str, answer: Any, names: str) -> tuple:
        """What `reset` and `step` return, the last of it a dict."""
        if not isinstance(answer, tuple) or len(answer) != names.count(",") + 1:
            self._refuse(f"what {call}() returns", answer, f"({names})")
        if not isinstance(answer[-1], dict):
            self._refuse(f"the info of {call}()", answer[-1], "a dict")
        return answer

    def observation(self, call: str, answer: Any) -> np.ndarray:
        """Flat, float32 and finite; an image as it is."""
        if self.image_shape is not None:
            if not isinstance(answer, np.ndarray) or answer.dtype != np.uint8 or answer.shape != self.image_shape:
                self._refuse(f"the observation of {call}()", answer, f"an image {self.image_shape} of uint8")
            return answer
        vector = None
        with contextlib.suppress(TypeError, ValueError, KeyError, RuntimeError):
            vector = flatten_observation(answer)
        # [1, o] and [o, 1] have one meaning, too.
        if vector is None or vector.size != self.size or max(vector.shape, default=1) != self.size:
            self._refuse(f"the observation of {call}()", answer, f"a vector of {self.size} numbers")
        if not np.isfinite(vector).all():
            self._refuse(f"the observation of {call}()", answer, "finite, in float32")
        return vector.reshape(self.size)

    def reward(self, answer: Any) -> float:
        """Finite."""
        reward = self._number("the reward of step()", answer)
        return reward if math.isfinite(reward) else self._refuse("the reward of step()", answer, "finite")

    def flag(self, name: str, answer: Any) -> bool:
        """True or false, or 1 or 0."""
        value = self._number(f"{name} of step()", answer)
        return bool(value) if value in (0, 1) else self._refuse(f"{name} of step()", answer, "true or false")

    def success(self, info: dict[str, Any]) -> float:
        """Whether the task is achieved, 0 to 1; not a number where the environment does not say."""
        name = next((name for name in ("success", "is_success") if info.get(name) is not None), None)
        if name is None:
            return math.nan
        value = self._number(f"info[{name!r}] of step()", info[name])
        return self._refuse(f"info[{name!r}] of step()", info[name], "0 to 1") if value < 0 or value > 1 else value

    def frame(self, answer: Any) -> np.ndarray:
        """[height, width, 3], of uint8."""
        if not isinstance(answer, np.ndarray) or answer.dtype != np.uint8 or answer.shape[2:] not in ((3,), (4,)):
            self._refuse("what render() returns", answer, "an array [height, width, 3] of uint8")
        return answer[..., :3]  # without transparency

    def _number(self, what: str, answer: Any) -> float:
        """Of a number, or an array of one."""
        with contextlib.suppress(TypeError, ValueError, RuntimeError):
            array = np.asarray(answer)
            if array.dtype.kind in "fiub":
                return float(array.item())
        self._refuse(what, answer, "a number")

    def _refuse(self, what: str, answer: Any, expected: str) -> NoReturn:
        shape = f", of shape {answer.shape}" if getattr(answer, "shape", ()) else ""
        shown = " ".join(repr(answer).split())
        shown = shown if len(shown) <= 100 else f"{shown[:100]} .."
        raise UserError(f"{self.name}: {what} is {shown}{shape}; it should be {expected}")
