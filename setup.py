"The package, described once in `settings.ini`, which nbdev reads too."
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).resolve().parent
config = ConfigParser(delimiters=['='], interpolation=None)
config.read(HERE/'settings.ini', encoding='utf-8')
settings = config['DEFAULT']

STATUS = {'1': '1 - Planning', '2': '2 - Pre-Alpha', '3': '3 - Alpha', '4': '4 - Beta', '5': '5 - Production/Stable'}
SUFFIX = '_requirements'
readme = HERE/'README.md'

setup(
    name=settings['lib_name'],
    version=settings['version'],
    description=settings['description'],
    long_description=readme.read_text(encoding='utf-8') if readme.exists() else settings['description'],
    long_description_content_type='text/markdown',
    author=settings['author'],
    url=settings['git_url'],
    license_expression='Apache-2.0',
    license_files=['LICENSE'],
    keywords=settings['keywords'].split(),
    classifiers=[
        f"Development Status :: {STATUS[settings['status']]}",
        f"Intended Audience :: {settings['audience']}",
        f"Natural Language :: {settings['language']}",
        'Natural Language :: Polish',
        'Programming Language :: Python :: 3',
        *(f'Programming Language :: Python :: 3.{minor}' for minor in (11, 12, 13)),
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
    packages=find_packages(include=['distilherbert', 'distilherbert.*']),
    python_requires=f">={settings['min_python']}",
    install_requires=settings['requirements'].split(),
    extras_require={key.removesuffix(SUFFIX): settings[key].split() for key in settings if key.endswith(SUFFIX)},
    entry_points={'console_scripts': settings['console_scripts'].splitlines()},
    zip_safe=False,
)
