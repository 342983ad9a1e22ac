"""The report as one HTML file: :mod:`.document` collects its data, which are also those of the JSON file, and :mod:`.render` draws them.

:mod:`.outline` describes the nodes of a network, :mod:`.findings` puts the data into words and groups, and :mod:`.plot` draws the trade-off of a plan.
"""

from .document import Run, document, plan_document
from .outline import Outline
from .render import check_ready, page

__all__ = ["Outline", "Run", "check_ready", "document", "page", "plan_document"]
