"""The table of layouts."""

from shared.dump.layouts.base import Layout
from shared.dump.layouts.listed import Listed
from shared.dump.layouts.listed_next_token import ListedNextToken
from shared.dump.layouts.next_token import NextToken
from shared.dump.layouts.nowhere import Nowhere
from shared.dump.layouts.row import Row
from shared.dump.layouts.spans import Spans
from shared.registry import Registry

LAYOUTS: Registry[Layout] = Registry(
    "layout",
    {layout.name: layout for layout in (NextToken(), ListedNextToken(), Listed(), Spans(), Row(), Nowhere())},
)
