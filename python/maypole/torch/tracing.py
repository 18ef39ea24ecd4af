"""Keeps torch.compile out of this package.

While a compiled function runs, PyTorch looks at every Python frame that begins, also at those that C++ calls: DDP's
forward pass, for one, broadcasts buffers through C++, which calls this package's Python methods. There is nothing in
them to compile. Marking their code costs a call nothing, where wrapping them in `torch.compiler.disable` would, and
needs no import of the compiler, which takes seconds.
"""

import types


def _codes(code):
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


def _functions(namespace, module):
    """All functions that a namespace defines, methods and properties of its classes included."""
    for value in list(vars(namespace).values()):
        value = getattr(value, "__func__", value)
        if isinstance(value, types.FunctionType) and value.__module__ == module:
            yield value
        elif isinstance(value, property) and value.fget is not None:
            yield value.fget
        elif isinstance(value, type) and value.__module__ == module:
            yield from _functions(value, module)


def _marker():
    """What marks a code object: releases have two ways. None if this torch has no compiler."""
    from torch._C import _dynamo

    tracer = _dynamo.eval_frame
    if hasattr(tracer, "set_code_exec_strategy"):
        action = tracer._FrameAction
        strategy = tracer._FrameExecStrategy(action.SKIP, action.SKIP)  # the code itself, and what it calls
        return lambda code: tracer.set_code_exec_strategy(code, strategy)
    return getattr(tracer, "skip_code", None)


def leave_uncompiled(*modules):
    """Has torch.compile run everything that these modules define as it is."""
    try:
        mark = _marker()
    except (ImportError, AttributeError):
        mark = None
    if mark is None:  # compiled programs run all the same, but for those that make DDP call us
        return
    for module in modules:
        for function in _functions(module, module.__name__):
            for code in _codes(function.__code__):
                mark(code)
