"""Pages that need nothing else, from templates that escape every text.

The templates lie with those who fill them: `report.html`, `data.statistics_page`.
"""

import importlib.resources

import jinja2


def page_template(package: str, name: str) -> jinja2.Template:
    """A package's template; a name that it uses and is not given raises.

    Args:
        package: dotted, where the template lies.
        name: of its file.
    """
    source = importlib.resources.files(package).joinpath(name).read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(source)
