"""Stub."""


class Attention:
    packs = False

    @classmethod
    def take_over(cls, model):
        return None


def pack(attention, rows, numbers): ...
