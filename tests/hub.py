"A hub of models and data sets on this machine, as far as its clients ask: https://huggingface.co/docs/hub/api."
import hashlib
import http.server
import json
import re
import threading
from urllib.parse import unquote, urlsplit

COMMIT = hashlib.sha1(b'the only commit').hexdigest()


class Hub(http.server.ThreadingHTTPServer):
    "Serves `folder/models/<owner>/<name>` and `folder/datasets/<owner>/<name>`; `with Hub(folder) as hub: ... hub.address`."
    daemon_threads = True

    def __init__(self, folder):
        self.folder = folder
        super().__init__(('127.0.0.1', 0), Handler)

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error):
        self.shutdown()
        self.server_close()

    @property
    def address(self): return f'http://127.0.0.1:{self.server_port}'


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def log_message(self, *args): pass

    def answer(self, body, status=200, **headers):
        self.send_response(status)
        for name, value in ({'Content-Length': len(body), 'X-Repo-Commit': COMMIT} | headers).items(): self.send_header(name.replace('_', '-'), str(value))
        self.end_headers()
        if self.command != 'HEAD': self.wfile.write(body)

    def say(self, what): self.answer(json.dumps(what).encode(), Content_Type='application/json')

    def entry(self, repo, file):
        return {'type': 'directory' if file.is_dir() else 'file', 'path': file.relative_to(repo).as_posix(), 'oid': tag(file), 'size': file.stat().st_size}

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        if m := re.fullmatch(r'/api/(models|datasets)/([^/]+/[^/]+)(?:/(revision|tree|paths-info)/[^/]+(?:/(.*))?)?', path):
            kind, name, what, inside = m.groups()
            repo = self.server.folder/kind/name
            if not repo.is_dir(): return self.answer(b'', 404, X_Error_Code='RepoNotFound')
            files = sorted((repo/(inside or '')).rglob('*'))
            if what == 'tree': return self.say([self.entry(repo, f) for f in files])
            if what == 'paths-info':
                wanted = json.loads(self.rfile.read(int(self.headers['Content-Length'])))['paths']
                return self.say([self.entry(repo, repo/p) for p in wanted if (repo/p).exists()])
            return self.say({'id': name, 'sha': COMMIT, 'private': False, 'tags': [], 'downloads': 0, 'likes': 0,
                             'siblings': [{'rfilename': f.relative_to(repo).as_posix()} for f in files if f.is_file()]})
        if m := re.fullmatch(r'/(datasets/)?([^/]+/[^/]+)/resolve/[^/]+/(.+)', path):
            file = self.server.folder/(m[1] or 'models/')/m[2]/m[3]
            if not file.is_file(): return self.answer(b'', 404, X_Error_Code='EntryNotFound')
            return self.answer(file.read_bytes(), ETag=f'"{tag(file)}"')
        return self.answer(b'', 404)

    do_HEAD = do_POST = do_GET


def tag(file): return hashlib.sha1(file.read_bytes() if file.is_file() else b'').hexdigest()
