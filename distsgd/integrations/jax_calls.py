"""How a model's function is called: which of its arguments are parameters, inputs, state or a key."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from distsgd import ConfigurationError

_KEYS = ("rng", "key", "rng_key", "prng_key")
_TRAINING = ("training", "train", "is_training")
_NOT_TRAINING = ("deterministic", "inference")
_FORMS = (
    "apply(params, x), and where the model needs them, by these names: state (it then returns (outputs, state)), "
    "rng or key, and training, train, is_training or deterministic"
)


@dataclass(frozen=True)
class Call:
    """Calls a function with what its signature names.

    takes_state   whether it takes a state, and returns (outputs, next state)
    inputs        the names of its inputs; a single one takes all inputs
    """

    function: Callable[..., Any]
    parameters: tuple[inspect.Parameter, ...]
    takes_state: bool
    inputs: tuple[str, ...]

    def __call__(self, params: Any, state: Any, x: Any, rng: Any, training: bool) -> tuple[Any, Any]:
        """(the outputs, the next state, None where there is no state)."""
        known = dict.fromkeys(_KEYS, rng) | {"state": state}
        known |= dict.fromkeys(_TRAINING, training) | dict.fromkeys(_NOT_TRAINING, not training)
        known |= self._inputs(x)
        args, named = [params], {}
        for one in self.parameters:
            if one.kind is one.KEYWORD_ONLY:
                named[one.name] = known[one.name]
            else:
                args.append(known[one.name])
        found = self.function(*args, **named)
        if not self.takes_state:
            return found, None
        if not isinstance(found, tuple) or len(found) != 2:
            raise ConfigurationError(
                f"JaxModel: apply takes a state, so it must return (outputs, state), got {type(found).__name__}"
            )
        return found

    def _inputs(self, x: Any) -> dict[str, Any]:
        if len(self.inputs) == 1:
            return {self.inputs[0]: x}
        if not isinstance(x, dict) or set(x) != set(self.inputs):
            given = ", ".join(x) if isinstance(x, dict) else "one array"
            raise ConfigurationError(
                f"JaxModel: apply takes the inputs {', '.join(self.inputs)}, and the data has {given}; give x as a "
                "dictionary of arrays with these names"
            )
        return x


def call_of(apply: Any, has_state: bool) -> Call:
    """The call of a function with its own signature. Raises ConfigurationError for one that no form fits."""
    if not callable(apply):
        raise ConfigurationError(f"JaxModel: apply must be a function, got {type(apply).__name__}; expected {_FORMS}")
    try:
        parameters = list(inspect.signature(apply).parameters.values())
    except (TypeError, ValueError):
        raise ConfigurationError(f"JaxModel: apply has no signature to read; wrap it in a function: {_FORMS}") from None
    known = {"state", *_KEYS, *_TRAINING, *_NOT_TRAINING}
    taken: list[inspect.Parameter] = []
    inputs: list[str] = []
    for one in parameters[1:]:
        if one.kind is one.VAR_KEYWORD:
            continue
        is_unknown = one.name not in known
        if one.kind is one.VAR_POSITIONAL:
            if inputs:
                continue
            one = inspect.Parameter("x", inspect.Parameter.POSITIONAL_ONLY)
        elif is_unknown and one.default is not one.empty:
            continue
        if is_unknown:
            inputs.append(one.name)
        taken.append(one)
    if not parameters or parameters[0].kind not in (
        inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
    ) or not inputs:  # fmt: skip
        shown = ", ".join(str(one) for one in parameters)
        raise ConfigurationError(f"JaxModel: apply takes ({shown}); expected {_FORMS}")
    takes_state = any(one.name == "state" for one in taken)
    if takes_state != has_state:
        needed = "takes a state; give its initial values with state=" if takes_state else "takes no argument state"
        raise ConfigurationError(f"JaxModel: apply {needed}" + ("" if takes_state else ", and state= is given"))
    return Call(apply, tuple(taken), takes_state, tuple(inputs))


def linen_module(apply: Any) -> Any:
    """The flax.linen module that this is the method apply of; None for any other function."""
    module = getattr(apply, "__self__", None)
    is_linen = any(kind.__module__.startswith("flax.linen") for kind in type(module).__mro__)
    return module if is_linen and getattr(apply, "__name__", "") == "apply" else None


def linen_call(module: Any, variables: Any) -> tuple[Any, Any, Callable[..., Any]]:
    """(params, state, a function of them) of a Flax module and its variables: state is what isn't params."""
    if not isinstance(variables, Mapping) or "params" not in variables:
        raise ConfigurationError(
            "JaxModel: with module.apply of Flax, params must be the variables that module.init returns, "
            'a dictionary with "params"'
        )
    params, state = variables["params"], {key: one for key, one in variables.items() if key != "params"}
    names = inspect.signature(type(module).__call__).parameters
    flags = {name: True for name in _TRAINING if name in names} | {
        name: False for name in _NOT_TRAINING if name in names
    }

    def with_state(params: Any, state: Any, rng: Any, x: Any, training: bool) -> tuple[Any, Any]:
        named: dict[str, Any] = {name: way == training for name, way in flags.items()}
        args = () if isinstance(x, dict) and set(x) <= set(names) else (x,)
        named |= {} if args else x
        more = {"rngs": {"dropout": rng}, "mutable": list(state)} if training else {}
        try:
            found = module.apply({"params": params, **state}, *args, **more, **named)
        except Exception as error:
            if type(error).__name__ == "InvalidRngError":
                raise _of_other_keys(training) from error
            raise
        return (found[0], {**state, **found[1]}) if training else (found, state)

    def without(params: Any, rng: Any, x: Any, training: bool) -> Any:
        return with_state(params, {}, rng, x, training)[0]

    return params, state or None, with_state if state else without


def _of_other_keys(training: bool) -> ConfigurationError:
    given = 'one for "dropout" alone in training' if training else "none in evaluation"
    return ConfigurationError(
        f"JaxModel: the module asks for a random key, and has {given}; give a function instead of module.apply, "
        "apply(params, x, key, training), that calls it with rngs={…} of this key"
    )
