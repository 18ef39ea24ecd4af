"""Print the README's Python snippet: the first code block marked python."""

import re
import sys
from pathlib import Path

print(re.search(r"^```python\n(.*?)^```", Path(sys.argv[1]).read_text(), re.DOTALL | re.MULTILINE).group(1))
