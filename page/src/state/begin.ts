import { refresh } from './gallery'
import { readServer, server, locked } from './server'
import { readPreferences } from './ui'

/** Everything that needs the server; again after signing in. */
export async function begin(): Promise<void> {
  if (!(await readServer())) return
  await Promise.all([readPreferences(), refresh(true)])
}

/** Models are told of once an engine has loaded them: until then sizes and defaults aren't known. */
export function watchModels(): void {
  setInterval(() => {
    if (!document.hidden && !locked.value && server.value && (!server.value.models.some((one) => one.size) || server.value.models.some((one) => one.state === 'loading'))) void readServer()
  }, 2000)
}
