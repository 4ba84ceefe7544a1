from string import Template
PAGE = Template("")
